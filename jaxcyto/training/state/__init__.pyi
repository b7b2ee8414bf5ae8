from .checkpoint import Checkpoints
from .optim import make_optimizer
from .state import State, init_state
from .transfer import transfer

__all__ = [
    "Checkpoints",
    "State",
    "init_state",
    "make_optimizer",
    "transfer",
]
