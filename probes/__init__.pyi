from .errors import InputError as InputError
from .maps import attention_map as attention_map
from .models import MODEL_NAMES as MODEL_NAMES
from .models import build_predictor as build_predictor
from .models import fingerprint as fingerprint
from .models import name_of as name_of
from .observing import edit as edit
from .observing import observe as observe
from .prompts import Prompt as Prompt
from .prompts import read_prompts as read_prompts
from .recording import record as record
from .records import load_recording as load_recording
from .sites import attention_sites as attention_sites
from .video import open_video as open_video

__all__ = [
    "InputError",
    "MODEL_NAMES",
    "Prompt",
    "attention_map",
    "attention_sites",
    "build_predictor",
    "edit",
    "fingerprint",
    "load_recording",
    "name_of",
    "observe",
    "open_video",
    "read_prompts",
    "record",
]
