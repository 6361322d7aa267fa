package resources

import (
	"encoding/json"
	"math/rand"
	"testing"

	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/randfill"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// FuzzResources sends every resource through all that a request makes of it. Whatever a client sends, it may be refused,
// but the server goes on; defaulting twice is defaulting once.
func FuzzResources(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"spec":{}}`, `{"spec":{"template":{"spec":{"containers":[{}]}}}}`, `{"spec":{"containers":[{"ports":[{}],"env":[{"valueFrom":{}}],"livenessProbe":{},"lifecycle":{"preStop":{}},"resources":{"limits":{"cpu":"1"}}}],"volumes":[{"projected":{"sources":[{}]}}],"affinity":{"nodeAffinity":{}}}}`,
		`{"spec":{"selector":{"matchExpressions":[{"key":"a","operator":"Near"}]},"strategy":{"type":"Recreate","rollingUpdate":{}}}}`, `{"spec":{"ports":[{}],"type":"NodePort","sessionAffinity":"ClientIP"}}`,
		`{"rules":[{}],"roleRef":{},"subjects":[{}],"endpoints":[{}],"ports":[{}],"subsets":[{"ports":[{}],"addresses":[{}]}],"webhooks":[{"clientConfig":{"service":{}},"rules":[{}]}]}`,
		`{"spec":{"ingress":[{"from":[{"ipBlock":{}}],"ports":[{"endPort":1}]}],"egress":[{}],"jobTemplate":{},"claimRef":{},"taints":[{}],"rules":[{}],"tls":[{}]}}`,
		`{"status":{"conditions":[{}],"containerStatuses":[{}],"loadBalancer":{"ingress":[{}]},"startTime":null,"hard":{"limits.cpu":"1"}},"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z","ownerReferences":[{"controller":true,"apiVersion":"a/b/c"}]},"series":{}}`,
	} {
		f.Add([]byte(seed), []byte(`{"spec":null}`))
	}
	all := All()
	f.Fuzz(func(t *testing.T, raw, oldRaw []byte) {
		for _, r := range all {
			read := func(raw []byte) runtime.Object {
				obj := r.New()
				if json.Unmarshal(raw, obj) != nil {
					return nil
				}
				if r.Default != nil {
					r.Default(obj)
				}
				return obj
			}
			// Tables print what is stored, which an older server may have defaulted otherwise.
			if plain := r.New(); json.Unmarshal(raw, plain) == nil {
				for _, c := range r.Columns {
					c.Cell(plain)
				}
			}
			obj, old := read(raw), read(oldRaw)
			if obj == nil {
				continue
			}
			exercise(t, r, obj, old)
		}
	})
}

// TestRandomObjects does the same with objects that are filled at random: any field may be there.
func TestRandomObjects(t *testing.T) {
	funcs := fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, func(serializer.CodecFactory) []any {
		return []any{
			func(q *resource.Quantity, c randfill.Continue) {
				*q = *resource.NewMilliQuantity(c.Int63n(5000)-1000, resource.DecimalSI)
			},
			func(e *runtime.RawExtension, _ randfill.Continue) { e.Raw = []byte(`{"a":"b"}`) },
		}
	})
	codecs := serializer.NewCodecFactory(runtime.NewScheme())
	const objects = 150
	for _, r := range All() {
		t.Run(r.GroupVersion.String()+" "+r.Kind, func(t *testing.T) {
			fill := fuzzer.FuzzerFor(funcs, rand.NewSource(7), codecs).NilChance(0.3).NumElements(0, 2).MaxDepth(12)
			for range objects {
				obj, old := r.New(), r.New()
				fill.Fill(obj)
				fill.Fill(old)
				for _, c := range r.Columns {
					c.Cell(obj)
				}
				if r.Default != nil {
					r.Default(obj)
					r.Default(old)
				}
				exercise(t, r, obj, old)
				same := old.DeepCopyObject()
				if r.ValidateUpdate != nil {
					if errs := r.ValidateUpdate(same, old); len(errs) > 0 && r.Kind != "Node" {
						t.Errorf("an update that changes nothing: %v", errs)
					}
				}
			}
		})
	}
}

// exercise does to an object what the requests that create, print and change it do.
func exercise(t *testing.T, r *descriptor.Resource, obj, old runtime.Object) {
	t.Helper()
	if r.Default != nil {
		once, err := json.Marshal(obj)
		r.Default(obj)
		if twice, _ := json.Marshal(obj); err == nil && string(once) != string(twice) {
			t.Errorf("%s: defaulted once\n%s\ntwice\n%s", r.Kind, once, twice)
		}
	}
	if r.PrepareCreate != nil {
		r.PrepareCreate(t.Context(), obj)
	}
	if r.Validate != nil {
		_ = r.Validate(obj).ToAggregate()
	}
	if r.Warn != nil {
		r.Warn(obj)
	}
	if r.Selectable != nil {
		r.Selectable(obj)
	}
	if r.Scale != nil {
		r.Scale.Selector(obj)
		r.Scale.SetReplicas(obj, r.Scale.Replicas(obj)+r.Scale.StatusReplicas(obj))
	}
	for _, c := range r.Columns {
		switch v := c.Cell(obj).(type) {
		case string, int64, bool:
		default:
			t.Errorf("%s: column %s is a %T", r.Kind, c.Name, v)
		}
	}
	if r.Graceful != nil {
		r.Graceful(obj, &metav1.DeleteOptions{})
	}
	if old == nil {
		return
	}
	if r.PrepareUpdate != nil {
		r.PrepareUpdate(t.Context(), obj, old)
	}
	if r.ValidateUpdate != nil {
		_ = r.ValidateUpdate(obj, old).ToAggregate()
	}
	if r.PrepareStatus != nil {
		r.PrepareStatus(t.Context(), obj, old)
	}
	if r.ValidateStatus != nil {
		_ = r.ValidateStatus(obj, old).ToAggregate()
	}
}
