"""What a scheduler sends, and the exit codes that answer. Imports nothing heavy."""

import signal

#: What a scheduler sends before it takes the machine away.
PREEMPTION = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n))
#: Exit codes: of Ctrl-C, as shells have it; and sysexits' "try again later", for a scheduler to start the job again.
STOPPED, TRY_AGAIN = 130, 75
