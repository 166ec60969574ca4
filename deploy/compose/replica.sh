#!/bin/bash
# The replica's entrypoint: copies the primary once, then streams from it.
set -euo pipefail

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  install -d -o postgres -g postgres -m 0700 "$PGDATA"
  # Into the connection string that the standby keeps, and nowhere else.
  PGPASSWORD="$REPLICATION_PASSWORD" gosu postgres pg_basebackup --pgdata="$PGDATA" --write-recovery-conf \
    --wal-method=stream --checkpoint=fast --slot=replica \
    --dbname='host=primary user=replication application_name=replica'
fi
exec docker-entrypoint.sh postgres
