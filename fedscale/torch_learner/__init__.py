"""Local training and evaluation of an ``App`` with torch; the one part of the core that imports torch.

A learner builds one module and keeps it. Every piece of work loads the global model into it in place, seeds torch from
``Work.seed`` inside a forked random state and leaves nothing behind that matters, so the order in which nodes or virtual
clients come changes no bit. What travels are the floating-point entries of the module's state, batch norm's running
statistics included; integer and non-persistent buffers stay local and start every piece of work as the module was built.
"""

from fedscale.torch_learner.devices import forkable
from fedscale.torch_learner.kernels import slow_halves
from fedscale.torch_learner.learner import TorchLearner, as_learner
from fedscale.torch_learner.threads import Ceiling, give_back, one_thread, settle_fork

__all__ = ["Ceiling", "TorchLearner", "as_learner", "forkable", "give_back", "one_thread", "settle_fork", "slow_halves"]
