"""Generated from proto/raftkv/v1 by .ci/generate; do not edit."""
