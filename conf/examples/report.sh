#!/bin/sh
# An outside agent without Python: reports a passive service up or down by UDP. Needs openssl and socat.
#
#     report.sh ADDRESS:PORT CLUSTER KEY-NAME KEY-FILE SERVICE up|down [MESSAGE...]
#
# Exit status: 0 the cluster took it; else it says why. docs/clients.md has the form of the datagrams.
set -eu
export LC_ALL=C
[ $# -ge 6 ] || { echo "usage: $0 ADDRESS:PORT CLUSTER KEY-NAME KEY-FILE SERVICE up|down [MESSAGE...]" >&2; exit 2; }
where=$1 cluster=$2 name=$3 file=$4 service=$5 state=$6
shift 6
message=$(printf '%s' "${*:--}" | tr -cd '[:print:]' | head -c 200)
nonce=$(openssl rand -hex 16)

# The key's octets in hexadecimal: those of its file, without the newline at its end; of a long one its digest (RFC 2104). No
# program gets it as an argument: others could read that.
key=$(od -An -v -tx1 <"$file" | tr -d ' \n' | sed 's/0a$//')
unhex() { for octet in $(printf '%s' "$1" | sed 's/../& /g'); do printf "\\$(printf %03o $((0x$octet ^ $2)))"; done; }
[ ${#key} -le 128 ] || key=$(unhex "$key" 0 | openssl dgst -sha256 | sed 's/.*= *//')
key=$(printf '%-128s' "$key" | tr ' ' 0)
# HMAC-SHA-256 of what comes on standard input.
digest() { { unhex "$key" 0x5c; { unhex "$key" 0x36; cat; } | openssl dgst -sha256 -binary; } | openssl dgst -sha256 | sed 's/.*= *//'; }

# One question, sent up to five times; the answer's words after the node's name, if its signature and nonce are good.
ask() {
    line=$(printf 'hasnmp-1 %s %s %s %s %s' "$1" "$name" "$nonce" "$cluster" "$2" | head -c 447)
    # 512 octets: the line, filled with spaces to 447, a newline, 64 digits.
    datagram=$(printf '%-447s\nx' "$line"); datagram=${datagram%x}
    signature=$(printf '%s' "$datagram" | digest)
    for try in 1 2 3 4 5; do
        answer=$(printf '%s%s' "$datagram" "$signature" | socat -t 0.5 -b 1024 - "UDP:$where" 2>/dev/null || :)
        body=${answer%????????????????????????????????????????????????????????????????}
        [ -n "$body" ] && [ "$(printf '%s' "$body" | digest)" = "${answer#"$body"}" ] || continue
        case $body in
        "hasnmp-1 $3 $name $nonce $cluster "* | "hasnmp-1 result $name $nonce $cluster "*)
            printf '%s' "$body" | head -n 1 | cut -d ' ' -f '2,7-'
            return 0 ;;
        esac
    done
    echo "no answer from $where: it is away, or refuses this key or this address (its log says so)" >&2
    return 1
}

words=$(ask challenge '' given)
case $words in
given\ *) words=$(ask report "${words#given } $service $state $message" result) ;;
esac
case $words in
result\ 0\ * | "result 0") exit 0 ;;
*) echo "not taken: ${words#result }" >&2; exit 1 ;;
esac
