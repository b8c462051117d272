"""What every service shares: lifecycle, errors, deadlines, telemetry, configuration."""
