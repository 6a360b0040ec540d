# SPDX-License-Identifier: MIT
from . import reference as reference
from .arrays import DeviceArray as DeviceArray
from .buffer import Buffer as Buffer
from .config import Config as Config
from .errors import Aborted as Aborted
from .errors import CapacityError as CapacityError
from .errors import DeepEPError as DeepEPError
from .errors import DeepEPTimeoutError as DeepEPTimeoutError
from .errors import DestroyedError as DestroyedError
from .errors import KernelFault as KernelFault
from .errors import PtxError as PtxError
from .errors import QueuePairError as QueuePairError
from .errors import RaceError as RaceError
from .errors import RankError as RankError
from .errors import RankMismatchError as RankMismatchError
from .errors import TuningError as TuningError
from .event import EventHandle as EventHandle
from .event import EventOverlap as EventOverlap
from .handle import EPHandle as EPHandle
from .handle import LowLatencyHandle as LowLatencyHandle
from .runtime import run_ranks as run_ranks

__version__: str
__all__: list[str]
