//! What every service process needs: configuration, telemetry, boot, health, shutdown, client channels.
