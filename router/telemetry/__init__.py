"""F3, the telemetry edge: events become metrics and log lines.

Here: the catalogue of all metrics, the sink that counts and logs each event, log set-up with redaction, the HTTP
server for Prometheus. Not here: deciding what happened (the engine emits typed events). May import: ports, model,
prometheus_client, structlog. To add a metric: one entry in metric_catalogue.py, one line where its event is counted
(recorder.py) or its state is read (state_collector.py); the tests find one that is missing.
"""
