package dns

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
)

// While rows are written all the time, each question has an answer that was right at some time, from the kernel or, as the question that it was, from the
// server: none is lost.
func TestKernelAnswersWhileNamesChange(t *testing.T) {
	dial, _, d := podAndServer(t)
	stop := make(chan struct{})
	var writing sync.WaitGroup
	for _, write := range []func(i int) error{
		func(i int) error { // more addresses or fewer, none of which the server knows
			svc := service("web", []string{fmt.Sprint("10.96.7.", i%200), fmt.Sprint("fd00:96::", i%200)}[:1+i%2], port("http", corev1.ProtocolTCP, 80))
			_, err := d.Names().Replace("uid-web", Desired(svc, nil, "cluster.local"))
			return err
		},
		func(i int) error { // long answers, and short ones
			var rrs []dns.RR
			for n := range 1 + i%20 {
				rrs = append(rrs, &dns.SRV{Hdr: dns.RR_Header{Name: "_pg._tcp.db.default.svc.cluster.local.", Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: 30}, Port: uint16(n), Target: "db.default.svc.cluster.local."})
			}
			m := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion(rrs[0].Header().Name, dns.TypeSRV))
			m.Answer = rrs
			_, err := d.Records().Replace("uid-db", appendRecord(nil, "uid-db", m))
			return err
		},
	} {
		writing.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := write(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var asking sync.WaitGroup
	for n := range 4 {
		conn := &dns.Conn{Conn: dial("udp", at), UDPSize: 1232}
		asking.Go(func() {
			for i := range 5000 {
				q := new(dns.Msg).SetQuestion([]string{"WEB.default.svc.cluster.local.", "_pg._tcp.db.default.svc.cluster.local."}[i%2], []uint16{dns.TypeA, dns.TypeSRV}[i%2])
				if i%3 > 0 {
					q.SetEdns0(1232, i%3 == 1)
				}
				if n%2 == 1 && i%3 > 0 { // an option that the kernel has to leave as it is
					q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
				}
				conn.SetDeadline(time.Now().Add(20 * time.Second))
				if err := conn.WriteMsg(q); err != nil {
					t.Error(err)
					return
				}
				m, err := conn.ReadMsg()
				if err != nil {
					t.Errorf("question %d: %v", i, err)
					return
				}
				if m.Id != q.Id || m.Rcode != dns.RcodeSuccess || !slices.Equal(m.Question, q.Question) || len(m.Answer) == 0 {
					t.Errorf("%v\nis answered by\n%v", q, m)
					return
				}
			}
		})
	}
	asking.Wait()
	close(stop)
	writing.Wait()
	status, err := d.Status()
	must(t, err)
	t.Logf("answered %d, passed on %d", status.Counters["dns_answered"], status.Counters["dns_passed"])
	if n := status.Counters["drop_rewrite"]; n > 0 {
		t.Errorf("%d questions were dropped", n)
	}
}
