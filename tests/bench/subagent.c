/* A subagent in C on Net-SNMP's own library, as one would write it: a table of rows, ten columns, an index of text.

   subagent MASTER-SOCKET ROWS      serves 1.3.6.1.4.1.32473.1993.1.1.COLUMN.LENGTH.NAME until it is killed */

#include <net-snmp/net-snmp-config.h>
#include <net-snmp/net-snmp-includes.h>
#include <net-snmp/agent/net-snmp-agent-includes.h>
#include <stdio.h>
#include <stdlib.h>

#define COLUMNS 10

struct row {
    char text[32];
    long number;
};

static int handle(netsnmp_mib_handler *handler, netsnmp_handler_registration *registration,
                  netsnmp_agent_request_info *info, netsnmp_request_info *requests) {
    for (netsnmp_request_info *r = requests; r; r = r->next) {
        if (r->processed) continue;
        netsnmp_table_request_info *table = netsnmp_extract_table_info(r);
        struct row *row = netsnmp_tdata_extract_entry(r);
        if (!row) {
            netsnmp_set_request_error(info, r, SNMP_NOSUCHINSTANCE);
        } else if (table->colnum % 2) {
            snmp_set_var_typed_value(r->requestvb, ASN_OCTET_STR, (u_char *)row->text, strlen(row->text));
        } else {
            snmp_set_var_typed_integer(r->requestvb, ASN_GAUGE, row->number + table->colnum);
        }
    }
    return SNMP_ERR_NOERROR;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    oid root[] = {1, 3, 6, 1, 4, 1, 32473, 1993, 1};
    snmp_disable_stderrlog();
    netsnmp_ds_set_boolean(NETSNMP_DS_APPLICATION_ID, NETSNMP_DS_AGENT_ROLE, 1);
    netsnmp_ds_set_string(NETSNMP_DS_APPLICATION_ID, NETSNMP_DS_AGENT_X_SOCKET, argv[1]);
    netsnmp_ds_set_boolean(NETSNMP_DS_LIBRARY_ID, NETSNMP_DS_LIB_DONT_READ_CONFIGS, 1);
    netsnmp_ds_set_boolean(NETSNMP_DS_LIBRARY_ID, NETSNMP_DS_LIB_DONT_PERSIST_STATE, 1);
    init_agent("subagent");

    netsnmp_tdata *table = netsnmp_tdata_create_table("rows", 0);
    netsnmp_tdata_add_index(table, ASN_OCTET_STR);
    netsnmp_table_registration_info *info = SNMP_MALLOC_TYPEDEF(netsnmp_table_registration_info);
    netsnmp_table_helper_add_indexes(info, ASN_OCTET_STR, 0);
    info->min_column = 1;
    info->max_column = COLUMNS;
    for (int i = 0; i < atoi(argv[2]); i++) {
        struct row *row = SNMP_MALLOC_TYPEDEF(struct row);
        char name[32];
        snprintf(name, sizeof name, "service-%05d", i);
        snprintf(row->text, sizeof row->text, "as it should be, %d", i);
        row->number = i;
        netsnmp_tdata_row *entry = netsnmp_tdata_create_row();
        entry->data = row;
        netsnmp_tdata_row_add_index(entry, ASN_OCTET_STR, name, strlen(name));
        netsnmp_tdata_add_row(table, entry);
    }
    netsnmp_tdata_register(
        netsnmp_create_handler_registration("rows", handle, root, OID_LENGTH(root), HANDLER_CAN_RONLY), table, info);
    init_snmp("subagent");
    for (;;) agent_check_and_process(1);
}
