"""Stands for the package MindSpeed, which cannot be installed here: the two modules of it that platforms/npu.py imports."""
