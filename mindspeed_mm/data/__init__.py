"""Lists of clips -> batches: which clips, which frames, which captions, in which order."""
