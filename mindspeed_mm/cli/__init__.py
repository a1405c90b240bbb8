"""The command `mindspeed-mm`: one function per command, one file per group. The published programs call the same ones."""
