"""Level 4, the view room: everything that a person sees or keeps of a run.

It listens to the one stream of events (``zlaunch.events``) and owns every descriptor that output goes to:
the console, the log files, ``--view json`` and the user's logging handlers. It knows neither the supervisor
nor the wire.
"""
