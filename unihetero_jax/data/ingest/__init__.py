"""Ingest: from anyone's files to shards of records, with processes of this machine or a cluster."""
