"""What figures and notebooks read from recordings: per clip first, then over clips with an interval."""

from figures.readings.estimates import Estimate as Estimate
from figures.readings.estimates import over_clips as over_clips
from figures.readings.maps import breadths as breadths
from figures.readings.maps import lifts as lifts
from figures.readings.maps import object_map as object_map
from figures.readings.maps import pixel_map as pixel_map
from figures.readings.memory import key_mass as key_mass
from figures.readings.memory import prompted_frames as prompted_frames
from figures.readings.memory import recall_curves as recall_curves
from figures.readings.memory import recollections as recollections
from figures.readings.memory import row_sampling as row_sampling
from figures.readings.memory import similarity as similarity
