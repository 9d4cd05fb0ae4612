"""The worker engine: takes tasks, runs them, settles what their ends mean, and keeps its leases meanwhile.

====================  ================================================================================================
``worker``            starts the parts, watches over them, stops them
``parts``             makes and connects them
``settings``          the knobs, with their units
``held``              what the worker holds at the moment
``claim``             asks for as many tasks as will soon be started
``execute``           the slots in which runs happen, and how a run is interrupted
``turn``              lets everything else on the event loop have its turn
``ending``            turns the end of a run into a settlement
``settle``            writes settlements in batches
``beside``            results that live on another backend than the queue
``lease``             the thread that keeps what is held
``upkeep``            reaps, expires and prunes, for the whole fleet
``emit``              the log of events, off the critical path
``drain``             the order of a graceful stop
``signals``           what SIGINT and SIGTERM do
``watchdog``          ends runs that take too long
``rest``              where the engine's own coroutines wait for work
``trouble``           waiting and logging while a backend is down
====================  ================================================================================================
"""

from omniq.engine.settings import WorkerSettings
from omniq.engine.worker import Engine

__all__ = ["Engine", "WorkerSettings"]
