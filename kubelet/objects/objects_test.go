package objects

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func configMap(version, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "cm", ResourceVersion: version}, Data: map[string]string{"k": value}}
}

// The authorizer of nodes may be a moment behind: that is waited out. What stays forbidden is told.
func TestPermitted(t *testing.T) {
	forbidden := apierrors.NewForbidden(corev1.Resource("secrets"), "s", errors.New("no relationship found"))
	for name, c := range map[string]struct {
		refusals int
		after    error
		want     error
		calls    int
	}{
		"at once":           {0, nil, nil, 1},
		"after a moment":    {3, nil, nil, 4},
		"another error":     {1, errors.New("x"), errors.New("x"), 2},
		"forbidden forever": {1000, nil, forbidden, 8},
	} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			err := Permitted(t.Context(), func() error {
				if calls++; calls <= c.refusals {
					return forbidden
				}
				return c.after
			})
			if (err == nil) != (c.want == nil) || err != nil && err.Error() != c.want.Error() || calls != c.calls {
				t.Errorf("%s: %v after %d calls, want %v after %d", name, err, calls, c.want, c.calls)
			}
		})
	}
}

func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(configMap("1", "old"))
		var mu sync.Mutex
		var woken []types.UID
		gets := 0
		client.PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
			gets++
			return false, nil, nil
		})
		c := New(client, func(pods []types.UID) { mu.Lock(); woken = append(woken, pods...); mu.Unlock() })
		get := func(uid types.UID) string {
			cm, err := c.ConfigMap(t.Context(), uid, "ns", "cm")
			if err != nil {
				t.Fatal(err)
			}
			return cm.Data["k"]
		}
		if get("a") != "old" {
			t.Error("wrong content")
		}
		synctest.Wait()
		if len(woken) > 0 {
			t.Errorf("woken %q by what they had just read", woken)
		}
		if get("b") != "old" || gets != 1 {
			t.Errorf("%d requests for what is watched", gets)
		}
		if _, err := client.CoreV1().ConfigMaps("ns").Update(t.Context(), configMap("2", "new"), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		slices.Sort(woken)
		if !slices.Equal(woken, []types.UID{"a", "b"}) || get("a") != "new" {
			t.Errorf("woken %q, content %q", woken, get("a"))
		}
		c.Release("a")
		if len(c.watches) != 1 {
			t.Error("the watch ended though a pod uses it")
		}
		c.Release("b")
		time.Sleep(time.Minute)
		if len(c.watches) != 0 {
			t.Error("the watch goes on though nobody uses it")
		}
		if _, err := c.Secret(t.Context(), "a", "ns", "none"); !apierrors.IsNotFound(err) {
			t.Errorf("%v", err)
		}
		c.Release("a")
		synctest.Wait()
	})
}
