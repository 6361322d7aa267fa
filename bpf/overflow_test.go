package bpf

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Rows that find no room are held elsewhere, and at any time whoever looks finds each as it was written last.
func TestOverflow(t *testing.T) {
	inner := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 16, Flags: unix.BPF_F_NO_PREALLOC}
	table, err := ebpf.NewMap(inner)
	must(t, err)
	defer table.Close()
	pins := t.TempDir()
	must(t, MountBPFFS(pins))
	defer UnmountBPFFS(pins)
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner})
	must(t, err)
	defer outer.Close()
	ownerOf := func(v uint64) string { return fmt.Sprint(v % 7) }
	open := func() *ownedMap[uint64, uint64] {
		t.Helper()
		o, err := openOverflowing[uint64](map[string]*ebpf.Map{"rows": table, "rows_more": outer}, pins, "rows", "row", ownerOf)
		must(t, err)
		return o
	}
	show := func(k uint64) string { return fmt.Sprint(k) }
	model := map[uint64]uint64{}
	owned := open()
	check := func() {
		t.Helper()
		var more *ebpf.Map
		if outer.Lookup(uint32(0), &more) == nil {
			defer more.Close()
		}
		for k, want := range model {
			var got uint64
			if table.Lookup(k, &got) != nil {
				must(t, more.Lookup(k, &got))
			}
			if got != want {
				t.Fatalf("row %d is %d, want %d", k, got, want)
			}
		}
		if !maps.Equal(owned.rows, model) {
			t.Fatalf("%v, want %v", owned.rows, model)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for step := range 300 {
		owner, most := random.Uint64N(7), 40
		if step > 250 {
			most = 1 // back to none
		}
		want := map[uint64]uint64{}
		for range random.IntN(most) {
			k := random.Uint64N(40)*7 + owner // of no other
			want[k] = random.Uint64N(3)*7 + owner
		}
		_, err := owned.replace(fmt.Sprint(owner), want, show)
		must(t, err)
		maps.DeleteFunc(model, func(k, _ uint64) bool { return k%7 == owner })
		maps.Copy(model, want)
		if check(); step%50 == 7 {
			must(t, owned.more.tidy())
			must(t, owned.more.close())
			owned = open()
			check()
		}
	}
	if owned.more.m == nil || owned.more.m.MaxEntries() < 128 {
		t.Fatal("it has not grown twice")
	}
	_, err = owned.prune(func(string) bool { return false }, show)
	must(t, err)
	must(t, owned.more.tidy())
	if owned = open(); len(owned.rows) != 0 || owned.more.m != nil {
		t.Errorf("%d rows are left, and the overflow: %v", len(owned.rows), owned.more.m)
	}
	// A row that a release without overflows wrote into the table stays, and is the one that is written from then on.
	for k := range uint64(17) {
		must(t, owned.put(k, k))
	}
	must(t, table.Delete(uint64(0)))
	must(t, table.Put(uint64(16), uint64(7)))
	must(t, owned.more.close())
	if owned = open(); owned.rows[16] != 7 {
		t.Errorf("the row in both is read as %d", owned.rows[16])
	}
	must(t, owned.takeOver())
	must(t, owned.put(16, 9))
	var got uint64
	if must(t, table.Lookup(uint64(16), &got)); got != 9 || owned.more.m != nil {
		t.Errorf("the row in both stays %d, and the overflow: %v", got, owned.more.m)
	}
}

// Names, records and lists beyond what their tables have room for are answered, while the tables grow, and by the next agent, too; and nothing below
// them is denied.
func TestNamesBeyondTheirTables(t *testing.T) {
	c := testConfig(t)
	c.nameRows = 4
	d := open(t, c)
	addPods(t, d)
	must(t, d.SetNamesState(NamesState{Whole: true, Pods: true}))
	name := func(i int) string { return fmt.Sprintf("s%d.ns%d.svc.cluster.local.", i, i) }
	add := func(i int) {
		t.Helper()
		_, err := d.Names().Replace(fmt.Sprint("u", i), []Name{{Name: name(i), Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}, {Name: fmt.Sprintf("ns%d.svc.cluster.local.", i)}})
		must(t, err)
		var many []string
		for j := range 12 {
			many = append(many, fmt.Sprintf("many.%s 30 IN A 10.1.0.%d", name(i), j))
		}
		_, err = d.Records().Replace(fmt.Sprint("u", i), []Record{{Message: response(t, "one."+name(i), "one."+name(i)+" 30 IN A 10.1.0.1")}, {Message: response(t, "many."+name(i), many...)}})
		must(t, err)
	}
	ask := func(program *ebpf.Program, i int) error {
		for q, n := range map[string]int{name(i): 1, "one." + name(i): 1, "many." + name(i): 12, fmt.Sprintf("10-1-0-1.ns%d.pod.cluster.local.", i): 1} {
			asked, err := packQuery(q, dns.TypeA, true)
			if err != nil {
				return err
			}
			verdict, out, err := tryRun(program, frame(17, ap(pod+":4242"), ap("10.96.0.10:53"), asked))
			if err != nil {
				return err
			}
			_, l4, end := transport(out)
			var m dns.Msg
			if verdict != actRedirect || m.Unpack(out[l4+8:end]) != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) != n {
				return fmt.Errorf("%s: verdict %d, %s", q, verdict, &m)
			}
		}
		return nil
	}
	const all = 60
	for i := range 8 {
		add(i)
	}
	stop, failed := make(chan struct{}), make(chan error, 1)
	var looking sync.WaitGroup
	program := d.net.Programs[podProgram]
	looking.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := ask(program, i%8); err != nil {
				failed <- err
				return
			}
		}
	})
	for i := 8; i < all; i++ {
		add(i)
	}
	close(stop)
	looking.Wait()
	select {
	case err := <-failed:
		t.Errorf("while the tables grew: %v", err)
	default:
	}
	must(t, d.Close())
	withoutSysAdmin(t, func() { // as kube-proxy's stand-in runs
		d = open(t, c)
		_, err := d.Status()
		must(t, err)
	})
	for i := range all {
		if err := ask(d.net.Programs[podProgram], i); err != nil {
			t.Errorf("of the next agent: %v", err)
		}
	}
	rows, err := ReadNames(c.PinDir)
	if err != nil || len(rows.Names) != 2*all || len(rows.Records) != 2*all {
		t.Errorf("%d names and %d records are read, %v", len(rows.Names), len(rows.Records), err)
	}
	s, err := d.Status()
	must(t, err)
	for _, m := range s.Maps {
		if want := map[string]int{namesPin: 2 * all, recordsPin: all, listsPin: all}[m.Name]; want > 0 && (m.Rows != want || int(m.Max) < want || !m.Grows) {
			t.Errorf("%+v, want %d rows", m, want)
		}
	}
	for i := range all { // what goes is gone
		_, err := d.Names().Replace(fmt.Sprint("u", i), nil)
		must(t, err)
		if verdict, out := run(t, d.net.Programs[podProgram], frame(17, ap(pod+":4242"), ap("10.96.0.10:53"), query(t, name(i), dns.TypeA, false))); verdict != actRedirect || out[14+20+8+3]&15 != dns.RcodeNameError {
			t.Fatalf("%s is there still: verdict %d", name(i), verdict)
		}
	}
}

// withoutSysAdmin calls f without that capability. The test has a thread of its own, see inNetns.
func withoutSysAdmin(t *testing.T, f func()) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	must(t, unix.Capget(&header, &all[0]))
	fewer := all
	fewer[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	must(t, unix.Capset(&header, &fewer[0]))
	defer func() { must(t, unix.Capset(&header, &all[0])) }()
	f()
}

// Where a table can't be opened Open says so. A folder is no table.
func TestTablesThatCannotBeOpened(t *testing.T) {
	c := tablesConfig(t)
	for _, table := range []string{namesPin, recordsPin, listsPin} {
		pin := filepath.Join(c.PinDir, table+overflowSuffix)
		must(t, os.Mkdir(pin, 0o700))
		if _, err := Open(c); err == nil || !strings.Contains(err.Error(), "overflow of table "+table) {
			t.Errorf("%s: %v", table, err)
		}
		must(t, os.Remove(pin))
	}
}

// Whoever reads beside an agent of an older release does without the tables that it has not.
func TestTablesOfNewerReleases(t *testing.T) {
	c := tablesConfig(t)
	open(t, c)
	for _, pin := range []string{outsideLongPin, namesPin + moreSuffix} {
		must(t, os.Remove(filepath.Join(c.PinDir, pin)))
	}
	_, err := ReadNames(c.PinDir)
	must(t, err)
	_, err = ReadOutside(c.PinDir)
	must(t, err)
	_, err = ForgetOutside(c.PinDir, ".")
	must(t, err)
}
