"""OmniQ on Redis and Valkey."""

from omniq_redis.backend import RedisBackend
from omniq_redis.options import RedisOptions

__version__ = "0.1.0"
__all__ = ["RedisBackend", "RedisOptions"]
