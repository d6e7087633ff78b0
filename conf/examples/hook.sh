#!/bin/sh
# A hook that writes down what happens: what it is told, by its environment and as one JSON object on standard input.
#
#     hooks: [{on: takeover_completed, run: [/usr/local/bin/hook.sh, /var/log/hasnmp-moves]}]
set -eu
echo "$(date -u +%FT%TZ) $HASNMP_EVENT group=$HASNMP_GROUP_NAME node=$HASNMP_NODE_NAME reason=$HASNMP_REASON: $HASNMP_MESSAGE" >>"$1"
cat >>"$1.json"
