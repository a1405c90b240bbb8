"""The web page: a form, a queue, progress by step and a history."""
