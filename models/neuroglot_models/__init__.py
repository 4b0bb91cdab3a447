"""The embedded models: data only, a folder each, which `neuroglot_exporter.embedded` finds, trains and measures."""
