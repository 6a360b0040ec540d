# SPDX-License-Identifier: MIT
from .device_array import DeviceArray as DeviceArray
