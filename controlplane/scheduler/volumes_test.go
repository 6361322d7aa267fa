package scheduler

import (
	"context"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/kube-scheduler/framework"
)

func uses(claims ...string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		for _, c := range claims {
			p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: c, VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
		}
	}
}

func storageClass(name, provisioner string, mode storagev1.VolumeBindingMode, zones ...string) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
	if len(zones) > 0 {
		c.AllowedTopologies = []v1.TopologySelectorTerm{{MatchLabelExpressions: []v1.TopologySelectorLabelRequirement{{Key: v1.LabelTopologyZone, Values: zones}}}}
	}
	return c
}

// claim is of a class; bound to a volume, if one is named.
func claim(name, class, size, boundTo string, change ...func(*v1.PersistentVolumeClaim)) *v1.PersistentVolumeClaim {
	c := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), ResourceVersion: "1"}}
	c.Spec = v1.PersistentVolumeClaimSpec{StorageClassName: &class, VolumeName: boundTo, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}}
	c.Spec.Resources.Requests = v1.ResourceList{v1.ResourceStorage: resource.MustParse(size)}
	if boundTo != "" {
		c.Annotations = map[string]string{volume.AnnBindCompleted: "yes"}
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// volumeOf is one of a node; empty: of any.
func volumeOf(name, class, size, node string) *v1.PersistentVolume {
	v := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
	v.Spec = v1.PersistentVolumeSpec{StorageClassName: class, Capacity: v1.ResourceList{v1.ResourceStorage: resource.MustParse(size)}, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}}
	v.Status.Phase = v1.VolumeAvailable
	if node != "" {
		v.Spec.NodeAffinity = &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
			MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{node}}},
		}}}}
	}
	return v
}

// taken is a volume that is not to be had.
func taken(v *v1.PersistentVolume) *v1.PersistentVolume {
	v.Status.Phase = v1.VolumeBound
	return v
}

func (s *scheduler) know(t *testing.T, objects ...any) {
	t.Helper()
	for _, o := range objects {
		store := s.informers.Core().V1().PersistentVolumes().Informer().GetStore()
		switch o.(type) {
		case *v1.PersistentVolumeClaim:
			store = s.informers.Core().V1().PersistentVolumeClaims().Informer().GetStore()
		case *storagev1.StorageClass:
			store = s.informers.Storage().V1().StorageClasses().Informer().GetStore()
		}
		if err := store.Add(o); err != nil {
			t.Fatal(err)
		}
	}
}

func TestChooseByVolumes(t *testing.T) {
	nodes := []*v1.Node{node("a", "4", "4Gi", zone("z1")), node("b", "4", "4Gi", zone("z2"))}
	objects := []any{
		storageClass("static", volume.NotSupportedProvisioner, storagev1.VolumeBindingWaitForFirstConsumer), storageClass("made", "x", storagev1.VolumeBindingWaitForFirstConsumer),
		storageClass("zoned", "x", storagev1.VolumeBindingWaitForFirstConsumer, "z2"), storageClass("now", "x", storagev1.VolumeBindingImmediate),
		volumeOf("on-b", "static", "5Gi", "b"), volumeOf("small-a", "static", "1Gi", "a"), taken(volumeOf("used-b", "static", "1Gi", "b")),
		claim("bound-b", "static", "1Gi", "used-b"), claim("bound-gone", "static", "1Gi", "gone"), claim("big", "static", "4Gi", ""), claim("huge", "static", "9Gi", ""), claim("small", "static", "1Gi", ""),
		claim("new", "made", "1Gi", ""), claim("new-z2", "zoned", "1Gi", ""), claim("pending", "now", "1Gi", ""), claim("going", "made", "1Gi", "", func(c *v1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{} }),
		claim("chosen-b", "made", "1Gi", "", func(c *v1.PersistentVolumeClaim) { c.Annotations = map[string]string{volume.AnnSelectedNode: "b"} }),
		claim("once", "static", "1Gi", "used-b", func(c *v1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}
		}),
	}
	const nowhere = "0/2 nodes are available: "
	for name, c := range map[string]struct {
		have []*v1.Pod
		pod  *v1.Pod
		want string
	}{
		"no volumes":             {nil, pod("p"), "a"},
		"a bound claim":          {nil, pod("p", uses("bound-b")), "b"},
		"its volume is gone":     {nil, pod("p", uses("bound-gone")), nowhere + "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)."},
		"no such claim":          {nil, pod("p", uses("nothing")), nowhere + `persistentvolumeclaim "nothing" not found.`},
		"a claim that goes":      {nil, pod("p", uses("going")), nowhere + `persistentvolumeclaim "going" is being deleted.`},
		"the binder's":           {nil, pod("p", uses("pending")), nowhere + "pod has unbound immediate PersistentVolumeClaims."},
		"where a volume fits":    {nil, pod("p", uses("big")), "b"},
		"where both fit":         {nil, pod("p", uses("small", "big")), nowhere + "2 node(s) didn't find available persistent volumes to bind."},
		"none fits":              {nil, pod("p", uses("huge")), nowhere + "2 node(s) didn't find available persistent volumes to bind."},
		"a volume may be made":   {nil, pod("p", uses("new")), "a"},
		"only in a zone":         {nil, pod("p", uses("new-z2")), "b"},
		"where it is being made": {nil, pod("p", uses("chosen-b")), "b"},
		"of two minds":           {nil, pod("p", uses("bound-b", "small", "new")), "b"},
		"for one pod":            {nil, pod("p", uses("once")), "b"},
		"for one pod that is there": {[]*v1.Pod{pod("x", onNode("b"), uses("once"))}, pod("p", uses("once")),
			nowhere + "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."},
		"ephemeral, not yet made": {nil, pod("p", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}}}
		}), nowhere + `waiting for ephemeral volume controller to create the persistentvolumeclaim "p-v".`},
	} {
		t.Run(name, func(t *testing.T) {
			s := with(t, nodes, c.have)
			s.know(t, objects...)
			got, why := s.choose(t.Context(), newCycleState(), c.pod)
			if why != nil {
				got = why.message
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestVolumeIsGivenOnce: a volume that was chosen for a pod counts as taken before the API knows of it, until that comes to nothing.
func TestVolumeIsGivenOnce(t *testing.T) {
	s := with(t, []*v1.Node{node("a", "4", "4Gi")}, nil)
	s.know(t, storageClass("static", volume.NotSupportedProvisioner, storagev1.VolumeBindingWaitForFirstConsumer), volumeOf("only", "static", "1Gi", "a"), claim("x", "static", "1Gi", ""), claim("y", "static", "1Gi", ""))
	state, first, second := newCycleState(), pod("first", uses("x")), pod("second", uses("y"))
	if _, why := s.choose(t.Context(), state, first); why != nil {
		t.Fatal(why.message)
	}
	if st := s.extensions.reserves(t.Context(), state, first, "a"); !st.IsSuccess() {
		t.Fatal(st.AsError())
	}
	if n, why := s.choose(t.Context(), newCycleState(), second); why == nil {
		t.Errorf("second pod on %s", n)
	}
	s.extensions.unreserves(t.Context(), state, first, "a")
	if _, why := s.choose(t.Context(), newCycleState(), second); why != nil {
		t.Error(why.message)
	}
}

// TestVolumesBeforeThePod: the binding of a pod waits for its claims, and is given up if their volumes can't be made.
func TestVolumesBeforeThePod(t *testing.T) {
	for name, c := range map[string]struct {
		then func(*v1.PersistentVolumeClaim)
		ok   bool
	}{
		"made": {func(c *v1.PersistentVolumeClaim) {
			c.Spec.VolumeName, c.Annotations[volume.AnnBindCompleted] = "made", "yes"
		}, true},
		"failed": {func(c *v1.PersistentVolumeClaim) { delete(c.Annotations, volume.AnnSelectedNode) }, false},
		"made for another node": {func(c *v1.PersistentVolumeClaim) {
			c.Spec.VolumeName, c.Annotations[volume.AnnBindCompleted] = "elsewhere", "yes"
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := with(t, []*v1.Node{node("a", "4", "4Gi")}, nil)
			mine := claim("x", "made", "1Gi", "")
			s.know(t, storageClass("made", "x", storagev1.VolumeBindingWaitForFirstConsumer), mine, taken(volumeOf("made", "made", "1Gi", "a")), taken(volumeOf("elsewhere", "made", "1Gi", "b")))
			api := s.client.CoreV1().PersistentVolumeClaims("ns")
			if _, err := api.Create(t.Context(), mine, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			w, err := api.Watch(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			state, p := newCycleState(), pod("p", uses("x"))
			if _, why := s.choose(t.Context(), state, p); why != nil {
				t.Fatal(why.message)
			}
			done := make(chan *framework.Status, 1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			go func() { done <- s.extensions.preBinds(ctx, state, p, "a") }()
			go func() {
				<-ctx.Done() // which ends a wait for what never comes
				w.Stop()
			}()
			for e := range w.ResultChan() {
				if told := e.Object.(*v1.PersistentVolumeClaim); e.Type == watch.Modified && told.Annotations[volume.AnnSelectedNode] == "a" {
					told.ResourceVersion = "2"
					c.then(told)
					s.know(t, told)
					break
				}
			}
			if st := <-done; st.IsSuccess() != c.ok {
				t.Errorf("%v", st.Message())
			}
		})
	}
}
