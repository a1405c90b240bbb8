"""Tensors in files: the formats, the layout of folders, and the proof that nothing is damaged; knows no network and no
run.
"""
