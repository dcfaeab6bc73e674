"""OpenVINO, kept from reporting to its maker.

Its telemetry package posts to an analytics server on import and on conversion, from a forked process, and writes into the
home folder, except where CI=true. Without that package it is silent, so the package is kept from being imported; every
import of openvino goes through here.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any


def openvino_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> Any:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino
    import openvino.opset13

    return openvino
