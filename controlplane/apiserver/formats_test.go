package apiserver

import (
	"bytes"
	"math/rand"
	"testing"

	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	"sigs.k8s.io/randfill"

	"github.com/strake-io/strake/controlplane/apiserver/resources"
)

// TestFormats sends random objects of each kind through every format that clients and the store use: what comes back is
// what went in, and its own first form again.
func TestFormats(t *testing.T) {
	scheme, err := newScheme(resources.All())
	if err != nil {
		t.Fatal(err)
	}
	codecs := serializer.NewCodecFactory(scheme, serializer.WithSerializer(cbor.NewSerializerInfo))
	funcs := fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, func(serializer.CodecFactory) []any {
		return []any{
			func(q *resource.Quantity, c randfill.Continue) {
				*q = *resource.NewQuantity(c.Int63n(5000), resource.DecimalSI)
			},
			func(e *runtime.RawExtension, _ randfill.Continue) { e.Raw = []byte(`{"a":"b"}`) },
		}
	})
	const objects = 20
	for _, r := range resources.All() {
		t.Run(r.GroupVersion.String()+" "+r.Kind, func(t *testing.T) {
			fill := fuzzer.FuzzerFor(funcs, rand.NewSource(11), codecs).NilChance(0.3).NumElements(1, 2).MaxDepth(10)
			for range objects {
				obj := r.New()
				fill.Fill(obj)
				acc, err := meta.Accessor(obj)
				if err != nil {
					t.Fatal(err)
				}
				acc.SetName("n")
				if r.Default != nil {
					r.Default(obj)
				}
				obj.GetObjectKind().SetGroupVersionKind(r.GroupVersionKind())
				for _, info := range codecs.SupportedMediaTypes() {
					codec := codecs.CodecForVersions(info.Serializer, info.Serializer, r.GroupVersion, r.GroupVersion)
					first, err := runtime.Encode(codec, obj.DeepCopyObject())
					if err != nil {
						t.Fatalf("%s: %v", info.MediaType, err)
					}
					back, err := runtime.Decode(codec, first)
					if err != nil {
						t.Fatalf("%s: %v", info.MediaType, err)
					}
					back.GetObjectKind().SetGroupVersionKind(r.GroupVersionKind())
					if !apiequality.Semantic.DeepEqual(back, obj) {
						second, _ := runtime.Encode(codec, back)
						if !bytes.Equal(first, second) {
							t.Fatalf("%s: went in as\n%s\ncame back as\n%s", info.MediaType, first, second)
						}
					}
				}
			}
		})
	}
}
