package enforce

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/history"
)

// What is enforced is noted, with the hashes that the policies have elsewhere: what there was at the start, what changes, what goes, also while no
// agent runs, and that it was proved.
func TestWhatIsEnforcedIsNoted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	var want []string
	noted := func() (got []string) {
		list, broken, err := history.Read(path)
		if err != nil || len(broken) > 0 {
			t.Fatal(err, broken)
		}
		for _, e := range list {
			line := e.What + " " + e.Hash
			if e.Away {
				line += " away"
			}
			got = append(got, line)
		}
		return got
	}
	await := func(more string) {
		t.Helper()
		want = append(want, more)
		for deadline := time.Now().Add(patience); !slices.Equal(noted(), want); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("noted %q, want %q", noted(), want)
			}
		}
	}
	start := func(l *lab) (stop func()) {
		t.Helper()
		var err error
		if l.cfg.History, err = history.Open(path); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var noting sync.WaitGroup
		noting.Go(func() { l.cfg.History.Run(ctx) })
		stop = sync.OnceFunc(func() { l.stop(); cancel(); noting.Wait() })
		l.run()
		t.Cleanup(stop)
		return stop
	}
	one, other := deny("d"), deny("d")
	other.Spec.Ingress = nil
	l := newLab(t, newTables(), namespace("ns"), one)
	stop := start(l)
	await("enforced " + netpol.Hash(one))
	policies := l.client.NetworkingV1().NetworkPolicies("ns")
	if _, err := policies.Update(t.Context(), other, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await("enforced " + netpol.Hash(other))
	if err := policies.Delete(t.Context(), "d", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await("gone ")
	l.settle()
	if !l.proof(t.Context()) {
		t.Fatal("it is not proved")
	}
	await("proved ")
	stop()
	start(newLab(t, newTables(), namespace("ns"), deny("e")))
	await("enforced " + netpol.Hash(deny("e")) + " away")
}
