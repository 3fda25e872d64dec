"""What a device is told to do, counted."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Counts torch's operators while it is entered, by name."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    @property
    def count(self):
        return self.names.total()

    def others(self, *names):
        """How many there were but for those."""
        return self.count - sum(self.names[name] for name in names)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))
