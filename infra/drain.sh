#!/bin/sh
# Tells Ray that this machine is about to be taken away, so that training runs save themselves and go on without it:
#   drain.sh SECONDS            at once, and stays that long: the preStop hook of a pod
#   drain.sh SECONDS --watch    when the provider announces it (the spot notice of AWS): beside Ray on a virtual machine
set -eu
seconds=$1
metadata=http://169.254.169.254/latest
if [ "${2:-}" = --watch ]; then
    until
        token=$(wget -qO- --method=PUT --header "X-aws-ec2-metadata-token-ttl-seconds: 60" $metadata/api/token) &&
            wget -qO- --header "X-aws-ec2-metadata-token: $token" $metadata/meta-data/spot/instance-action
    do
        sleep 5
    done
fi
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the machine is taken away" \
    --deadline-remaining-seconds "$seconds"
sleep "$seconds"
