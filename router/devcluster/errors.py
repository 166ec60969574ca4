"""The errors of the development cluster. Every message says what to do next."""


class DevClusterError(Exception):
    """Base of all errors raised here; its text is meant for the person at the terminal."""


class BinariesNotFoundError(DevClusterError):
    """No usable PostgreSQL was found; the text lists every place that was tried."""


class DataRootError(DevClusterError):
    """The data directory cannot be used: closed to the server's user, in use, or of another major version."""


class ToolFailedError(DevClusterError):
    """initdb, pg_basebackup, pg_rewind or another program ended with a failure."""


class ServerStartError(DevClusterError):
    """A server process ended, or did not accept connections in time, while it was started."""


class WaitTimeoutError(DevClusterError):
    """Something waited for did not happen in time."""


class NoPrimaryError(DevClusterError):
    """No running server accepts writes at this moment."""
