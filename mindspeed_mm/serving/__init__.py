"""A server of samples: OpenAI's videos API, its queue on disk, and the worker that makes the samples."""
