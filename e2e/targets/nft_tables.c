// Not a target: prints the names of the tables of nftables in this network namespace, one a line.
#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include "target.h"

int main(void) {
  const int fd = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER));
  struct {
    struct nlmsghdr header;
    struct nfgenmsg general;
  } request = {
      {.nlmsg_len = sizeof request,
       .nlmsg_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE,
       .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
      {.nfgen_family = AF_UNSPEC},
  };
  MUST(send(fd, &request, sizeof request, 0));
  static char buffer[65536];
  for (;;) {
    int length = (int)MUST(recv(fd, buffer, sizeof buffer, 0));
    for (struct nlmsghdr* reply = (struct nlmsghdr*)buffer; NLMSG_OK(reply, (unsigned)length);
         reply = NLMSG_NEXT(reply, length)) {
      if (reply->nlmsg_type == NLMSG_DONE) return 0;
      CHECK(reply->nlmsg_type != NLMSG_ERROR, "the kernel does not list tables");
      char* attribute = (char*)NLMSG_DATA(reply) + NLMSG_ALIGN(sizeof(struct nfgenmsg));
      char* const end = (char*)reply + reply->nlmsg_len;
      while (attribute + NLA_HDRLEN <= end) {
        const struct nlattr* head = (const struct nlattr*)attribute;
        if ((head->nla_type & NLA_TYPE_MASK) == NFTA_TABLE_NAME) printf("%s\n", attribute + NLA_HDRLEN);
        if (head->nla_len < NLA_HDRLEN) return 1;
        attribute += NLA_ALIGN(head->nla_len);
      }
    }
  }
}
