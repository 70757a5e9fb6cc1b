"""What all widgets and pages share: elements, style, and how a widget in a browser asks the kernel."""
