"""Features of clips and captions that were computed once and stored."""
