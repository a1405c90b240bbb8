"""Lists of clips: reads files in many formats into rows, and filters the usable clips."""
