#!/usr/bin/env bash
# Chromium and its driver from Debian's packages, for the tests of `lead serve`. Needs root.
set -euo pipefail
if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then exit 0; fi
if [ "$(id -u)" != 0 ]; then echo 'skip: installing chromium for the tests of the page needs root' >&2; exit 77; fi
command -v apt-get > /dev/null || { echo 'skip: no apt-get to install chromium with' >&2; exit 77; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends chromium chromium-driver > /dev/null
