/* A module for Net-SNMP's snmpd: the first ten columns of haServiceTable, as rows that its own table_data helper keeps
   sorted. HASNMP_ROWS services; while HASNMP_CHANGES is set, that many change a value each second, a tenth at a time. */

#include <net-snmp/net-snmp-config.h>
#include <net-snmp/net-snmp-includes.h>
#include <net-snmp/agent/net-snmp-agent-includes.h>
#include <stdlib.h>

static oid entry[] = {1, 3, 6, 1, 4, 1, 32473, 1992, 1, 6};
static netsnmp_tdata *table;

struct service {
    char name[16];
    long state, admin, action, critical;
    u_long checks, failures, restarts;
};
static struct service *services;
static int count, next, changes;

static int handle(netsnmp_mib_handler *h, netsnmp_handler_registration *r, netsnmp_agent_request_info *info,
                  netsnmp_request_info *requests) {
    for (netsnmp_request_info *request = requests; request; request = request->next) {
        struct service *s = netsnmp_tdata_extract_entry(request);
        netsnmp_table_request_info *at = netsnmp_extract_table_info(request);
        netsnmp_variable_list *v = request->requestvb;
        if (!s || !at) {
            netsnmp_set_request_error(info, request, SNMP_NOSUCHINSTANCE);
            continue;
        }
        switch (at->colnum) {
        case 2: snmp_set_var_typed_value(v, ASN_OCTET_STR, "web", 3); break;
        case 3: snmp_set_var_typed_value(v, ASN_OCTET_STR, "alpha", 5); break;
        case 4: snmp_set_var_typed_value(v, ASN_OCTET_STR, "exec", 4); break;
        case 5: snmp_set_var_typed_integer(v, ASN_INTEGER, s->state); break;
        case 6: snmp_set_var_typed_integer(v, ASN_INTEGER, s->admin); break;
        case 7: snmp_set_var_typed_integer(v, ASN_INTEGER, s->action); break;
        case 8: snmp_set_var_typed_integer(v, ASN_INTEGER, s->critical); break;
        case 9: snmp_set_var_typed_integer(v, ASN_COUNTER, s->checks); break;
        case 10: snmp_set_var_typed_integer(v, ASN_COUNTER, s->failures); break;
        case 11: snmp_set_var_typed_integer(v, ASN_GAUGE, s->restarts); break;
        default: netsnmp_set_request_error(info, request, SNMP_NOSUCHOBJECT);
        }
    }
    return SNMP_ERR_NOERROR;
}

static void change(unsigned int alarm, void *unused) {
    for (int i = 0; i < changes / 10; i++) {
        services[next].checks++;
        next = (next + 1) % count;
    }
}

void init_snmp_rows(void) {
    count = atoi(getenv("HASNMP_ROWS"));
    changes = getenv("HASNMP_CHANGES") ? atoi(getenv("HASNMP_CHANGES")) : 0;
    services = calloc(count, sizeof *services);
    table = netsnmp_tdata_create_table("haServiceTable", 0);
    for (int i = 0; i < count; i++) {
        struct service *s = services + i;
        netsnmp_tdata_row *row = netsnmp_tdata_create_row();
        snprintf(s->name, sizeof s->name, "s%05d", i);
        s->state = 4, s->admin = 1, s->action = 1, s->critical = 1, s->checks = i, s->failures = 0, s->restarts = 0;
        netsnmp_tdata_row_add_index(row, ASN_OCTET_STR, s->name, strlen(s->name));
        row->data = s;
        netsnmp_tdata_add_row(table, row);
    }
    netsnmp_table_registration_info *info = SNMP_MALLOC_TYPEDEF(netsnmp_table_registration_info);
    netsnmp_table_helper_add_indexes(info, ASN_OCTET_STR, 0);
    info->min_column = 2;
    info->max_column = 11;
    netsnmp_tdata_register(
        netsnmp_create_handler_registration("haServiceTable", handle, entry, OID_LENGTH(entry), HANDLER_CAN_RONLY), table,
        info);
    if (changes) {
        struct timeval t = {0, 100000};
        snmp_alarm_register_hr(t, SA_REPEAT, change, NULL);
    }
}
