# What OCF agents call of Pacemaker beside themselves, in our words: node names and attributes. Sourced by crm_node,
# crm_attribute, attrd_updater, crm_master, crm_resource and ha_logger, which stand first on an agent's PATH.
#
# Nodes come from HASNMP_OCF_NODE and _NODES. An attribute is a file of HASNMP_OCF_ATTRIBUTES, which is this node's own and
# gone after a reboot: no other node sees it, and nothing is decided by it. So scores for promotion are kept and ignored.
set -u
tool=${0##*/}
no_such=105 # CRM_EX_NOSUCH: what Pacemaker's tools say of an attribute that is not there
usage=64
folder=${HASNMP_OCF_ATTRIBUTES:?an agent of hasnmp sets it}
me=${HASNMP_OCF_NODE:-$(uname -n)}

complain() {
    echo "$tool (hasnmp): $*" >&2
}

# Where the attribute $2 of node $1 is; names hold no slash as files.
attribute() {
    printf '%s/%s.%s' "$folder" "$(printf %s "$1" | tr / _)" "$(printf %s "$2" | tr / _)"
}

node_tool() {
    for word in "$@"; do
        case $word in
        -n | --name) echo "$me" ;;
        -q | --quorum) echo 1 ;; # an action runs under a lease, so the right to run it is settled
        -p | --partition) echo "${HASNMP_OCF_NODES:-$me}" ;;
        -i | --cluster-id | -l | --list)
            number=0
            for name in ${HASNMP_OCF_NODES:-$me}; do
                number=$((number + 1))
                case $word in
                -l | --list) echo "$number $name member" ;;
                *) [ "$name" != "$me" ] || echo "$number" ;;
                esac
            done
            ;;
        *) complain "has no $word" && exit $usage ;;
        esac
    done
}

# $1: how a value that is asked for is shown, as crm or attrd.
attribute_tool() {
    style=$1
    shift
    node=$me name='' value='' default='' has_default='' verb=query quiet=''
    while [ $# -gt 0 ]; do
        word=$1
        shift
        case $word in
        --*=*)
            set -- "${word#*=}" "$@"
            word=${word%%=*}
            ;;
        esac
        case $word in
        -N | --node | -n | --name | --attr-name | -v | --update | -U | -B | --update-both | --attr-value | -d | --default | \
            --delay | -l | --lifetime | -t | --type | -s | --set-name | -S | --set | -x | --xpath)
            [ $# -gt 0 ] || { complain "$word needs a word after it" && exit $usage; }
            ;;
        esac
        case $word in
        -N | --node) node=$1 && shift ;;
        -n | --name | --attr-name) name=$1 && shift ;;
        -v | --update | -U | -B | --update-both | --attr-value) verb=update value=$1 && shift ;;
        -D | --delete) verb=delete ;;
        -d | --default | --delay)
            [ "$style" != crm ] || { default=$1 has_default=1; }
            shift
            ;;
        -G | --query) verb=query ;;
        -Q) [ "$style" = crm ] && quiet=1 || verb=query ;;
        -q | --quiet) quiet=1 ;;
        -l | --lifetime | -t | --type | -s | --set-name | -S | --set | -x | --xpath) shift ;;
        -p | --promotion)
            [ "$style" = crm ] || continue # attrd_updater: private to the daemon
            name=master-${OCF_RESOURCE_INSTANCE:-none}
            ;;
        -z | --utilization | -A | --all | -W | -Y | --update-delay | -V | --verbose | -R | --refresh) ;;
        *) complain "has no $word" && exit $usage ;;
        esac
    done
    [ -n "$name" ] || { complain "which attribute? give -n NAME" && exit $usage; }
    file=$(attribute "$node" "$name")
    case $verb in
    update) printf %s "$value" >"$file.$$" && mv "$file.$$" "$file" ;;
    delete) rm -f "$file" ;;
    query)
        if [ -e "$file" ]; then
            value=$(cat "$file")
        elif [ -n "$has_default" ]; then
            value=$default
        else
            [ -n "$quiet" ] || complain "no attribute $name of node $node"
            exit $no_such
        fi
        if [ -n "$quiet" ]; then
            echo "$value"
        elif [ "$style" = crm ]; then
            echo "scope=status  name=$name value=$value"
        else
            echo "name=\"$name\" host=\"$node\" value=\"$value\""
        fi
        ;;
    esac
}

case $tool in
crm_node) node_tool "$@" ;;
crm_attribute) attribute_tool crm "$@" ;;
attrd_updater) attribute_tool attrd "$@" ;;
crm_master) attribute_tool crm -p "$@" ;;
crm_resource)
    # Utilization (VirtualDomain, Xen) decides nothing here; all else would change a configuration that hasnmp does not have.
    case " $* " in
    *' -g '* | *' --get-parameter'*) exit $no_such ;;
    *' -z '* | *' --utilization '*) ;;
    *) complain "has no $*" && exit $usage ;;
    esac
    ;;
ha_logger)
    while [ $# -gt 0 ]; do
        case $1 in -t | -D) shift 2 ;; *) break ;; esac
    done
    echo "$*" >&2
    ;;
esac
