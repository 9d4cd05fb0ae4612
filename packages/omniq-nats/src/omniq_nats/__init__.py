"""OmniQ on NATS JetStream."""

from omniq_nats.backend import NatsBackend
from omniq_nats.options import NatsOptions

__version__ = "0.1.0"
__all__ = ["NatsBackend", "NatsOptions"]
