"""Who hears of alerts: by webhook, Slack or email."""
