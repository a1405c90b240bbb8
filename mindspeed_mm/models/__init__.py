"""Networks: all modules with parameters. Parameter names are the file format of the published checkpoints."""
