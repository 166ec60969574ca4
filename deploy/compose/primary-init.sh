#!/bin/bash
# Runs once, when the primary's data directory is new: the router's role, one tenant, a role for replication.
set -euo pipefail

psql_here() { psql --no-psqlrc --quiet --username postgres --dbname postgres "$@"; }

psql_here -v control_password="$POINTSMAN_CONTROL_PASSWORD" -f /sql/roles.sql
psql_here -v tenant=acme -v password="$ACME_PASSWORD" -f /sql/tenant.sql
psql_here -d acme -v tenant=acme -f /sql/tenant_database.sql
psql_here -f /sql/hardening.sql
psql_here -v ON_ERROR_STOP=1 -v password="$REPLICATION_PASSWORD" <<'SQL'
SET log_min_error_statement = panic;
SET log_statement = none;
CREATE ROLE replication LOGIN REPLICATION PASSWORD :'password';
SELECT pg_create_physical_replication_slot('replica');
ALTER SYSTEM SET wal_log_hints = on;
ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms';
SQL
echo 'host replication replication all scram-sha-256' >> "$PGDATA/pg_hba.conf"
