"""What operators and backends ask of a running gateway over HTTP. Rule: nothing here changes what the gateway is."""
