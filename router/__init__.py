"""Pointsman: a multi-tenant, failover-aware routing pool service for PostgreSQL. The map is router/README.md."""

__version__ = "0.1.0"
