"""The former place of `mindspeed_mm.schema`, for branches that still import it from here."""

from mindspeed_mm.schema import Node as Node
from mindspeed_mm.schema import build as build
from mindspeed_mm.schema import check as check
from mindspeed_mm.schema import did_you_mean as did_you_mean
from mindspeed_mm.schema import find as find
from mindspeed_mm.schema import node_from_python as node_from_python
from mindspeed_mm.schema import option as option
from mindspeed_mm.schema import read_json as read_json
from mindspeed_mm.schema import read_json_lines as read_json_lines
from mindspeed_mm.schema import read_text as read_text
