package statefulset

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/controlplane/controllers/revisions"
)

// ordinalOf reads the number of a pod out of its name; -1: it is none of the set's.
func ordinalOf(set string, pod string) int {
	text, ok := strings.CutPrefix(pod, set+"-")
	if !ok {
		return -1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || strconv.Itoa(n) != text {
		return -1
	}
	return n
}

func podName(s *appsv1.StatefulSet, ordinal int) string { return fmt.Sprintf("%s-%d", s.Name, ordinal) }

func claimName(t *corev1.PersistentVolumeClaim, s *appsv1.StatefulSet, ordinal int) string {
	return fmt.Sprintf("%s-%s-%d", t.Name, s.Name, ordinal)
}

// first is the lowest ordinal.
func first(s *appsv1.StatefulSet) int {
	if s.Spec.Ordinals == nil {
		return 0
	}
	return int(s.Spec.Ordinals.Start)
}

// claims are those of a pod, by the name of their volume.
func claims(s *appsv1.StatefulSet, ordinal int) map[string]*corev1.PersistentVolumeClaim {
	out := map[string]*corev1.PersistentVolumeClaim{}
	for i := range s.Spec.VolumeClaimTemplates {
		t := &s.Spec.VolumeClaimTemplates[i]
		c := t.DeepCopy()
		c.Name, c.Namespace = claimName(t, s, ordinal), s.Namespace
		l := map[string]string{}
		maps.Copy(l, c.Labels)
		maps.Copy(l, s.Spec.Selector.MatchLabels)
		c.Labels = l
		c.Status = corev1.PersistentVolumeClaimStatus{}
		out[t.Name] = c
	}
	return out
}

// identify gives a pod what tells it apart from its siblings: name, host name, labels and volumes.
func identify(p *corev1.Pod, s *appsv1.StatefulSet, ordinal int, revision string) {
	name := podName(s, ordinal)
	p.Name, p.GenerateName, p.Namespace = name, "", s.Namespace
	p.Spec.Hostname, p.Spec.Subdomain = name, s.Spec.ServiceName
	l := map[string]string{}
	maps.Copy(l, p.Labels)
	l[appsv1.StatefulSetPodNameLabel], l[appsv1.PodIndexLabel], l[revisions.Label] = name, strconv.Itoa(ordinal), revision
	p.Labels = l
	claimed := claims(s, ordinal)
	p.Spec.Volumes = slices.DeleteFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return claimed[v.Name] != nil })
	for i := range s.Spec.VolumeClaimTemplates {
		volume := s.Spec.VolumeClaimTemplates[i].Name
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimed[volume].Name},
		}})
	}
}

// claimOwners changes the references by which the garbage collector removes a claim: with the set, with a pod that is
// scaled away, or not at all, as the retention policy says. It tells whether anything changed. References that others
// made stay.
func claimOwners(c *corev1.PersistentVolumeClaim, s *appsv1.StatefulSet, p *corev1.Pod, condemned bool) bool {
	policy := appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: appsv1.RetainPersistentVolumeClaimRetentionPolicyType, WhenScaled: appsv1.RetainPersistentVolumeClaimRetentionPolicyType}
	if s.Spec.PersistentVolumeClaimRetentionPolicy != nil {
		policy = *s.Spec.PersistentVolumeClaimRetentionPolicy
	}
	var want *metav1.OwnerReference
	switch {
	case condemned && policy.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType:
		want = &metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID}
	case policy.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType:
		want = metav1.NewControllerRef(s, kind)
	}
	refs := slices.Clone(c.OwnerReferences)
	refs = slices.DeleteFunc(refs, func(r metav1.OwnerReference) bool {
		ours := r.UID == s.UID || r.Kind == "Pod" && r.APIVersion == "v1" && r.Name == p.Name
		return ours && (want == nil || r.UID != want.UID)
	})
	if want != nil && !slices.ContainsFunc(refs, func(r metav1.OwnerReference) bool { return r.UID == want.UID }) {
		refs = append(refs, *want)
	}
	if slices.EqualFunc(refs, c.OwnerReferences, func(a, b metav1.OwnerReference) bool { return a.UID == b.UID }) {
		return false
	}
	c.OwnerReferences = refs
	return true
}
