"""Lists of clips: files in many formats -> rows -> the clips of them that are used."""
