"""Turns files and flags into values: JSON with comments and argv become frozen dataclasses. Knows no key and no
network.
"""

from mindspeed_mm.schema.build import Notes as Notes
from mindspeed_mm.schema.build import build as build
from mindspeed_mm.schema.build import check as check
from mindspeed_mm.schema.build import did_you_mean as did_you_mean
from mindspeed_mm.schema.command import Given as Given
from mindspeed_mm.schema.command import Program as Program
from mindspeed_mm.schema.command import parse as parse
from mindspeed_mm.schema.fields import flag as flag
from mindspeed_mm.schema.fields import group as group
from mindspeed_mm.schema.fields import option as option
from mindspeed_mm.schema.fields import switches as switches
from mindspeed_mm.schema.flags import flags_of as flags_of
from mindspeed_mm.schema.node import Node as Node
from mindspeed_mm.schema.node import find as find
from mindspeed_mm.schema.node import node_from_python as node_from_python
from mindspeed_mm.schema.text import parse_json as parse_json
from mindspeed_mm.schema.text import read_json as read_json
from mindspeed_mm.schema.text import read_json_lines as read_json_lines
from mindspeed_mm.schema.text import read_text as read_text
