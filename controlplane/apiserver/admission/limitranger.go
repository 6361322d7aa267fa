package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// limitRanger applies the LimitRanges of a namespace: it fills in what containers leave out, and refuses pods
// and claims outside of the limits (https://kubernetes.io/docs/concepts/policy/limit-range/).
type limitRanger struct {
	*admission.Handler
	lister corelisters.LimitRangeLister
}

// limitAnnotation tells what was filled in.
const limitAnnotation = "kubernetes.io/limit-ranger"

func newLimitRanger() (admission.Interface, error) {
	return &limitRanger{Handler: admission.NewHandler(admission.Create, admission.Update)}, nil
}

func (l *limitRanger) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	inf := f.Core().V1().LimitRanges()
	l.lister = inf.Lister()
	l.SetReadyFunc(inf.Informer().HasSynced)
}

func (l *limitRanger) ValidateInitialization() error {
	if l.lister == nil {
		return errors.New("LimitRanger admission: no informers")
	}
	return nil
}

// items returns all limits of a request's namespace with their own defaults, in the order of their objects' names.
func (l *limitRanger) items(a admission.Attributes) ([]corev1.LimitRangeItem, error) {
	if err := ready(l.Handler, a); err != nil {
		return nil, err
	}
	ranges, err := l.lister.LimitRanges(a.GetNamespace()).List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("LimitRanges of namespace %s: %w", a.GetNamespace(), err)
	}
	slices.SortFunc(ranges, func(x, y *corev1.LimitRange) int { return strings.Compare(x.Name, y.Name) })
	var items []corev1.LimitRangeItem
	for _, r := range ranges {
		for i := range r.Spec.Limits {
			items = append(items, withDefaults(*r.Spec.Limits[i].DeepCopy()))
		}
	}
	return items, nil
}

// withDefaults derives a container's default limit from its maximum, and its default request from its default
// limit, or else from its minimum.
func withDefaults(i corev1.LimitRangeItem) corev1.LimitRangeItem {
	if i.Type != corev1.LimitTypeContainer {
		return i
	}
	inherit := func(to *corev1.ResourceList, from corev1.ResourceList) {
		for name, q := range from {
			if _, ok := (*to)[name]; !ok {
				if *to == nil {
					*to = corev1.ResourceList{}
				}
				(*to)[name] = q.DeepCopy()
			}
		}
	}
	inherit(&i.Default, i.Max)
	inherit(&i.DefaultRequest, i.Default)
	inherit(&i.DefaultRequest, i.Min)
	return i
}

func (l *limitRanger) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := podOf(a)
	if !ok || a.GetOperation() != admission.Create {
		return nil
	}
	items, err := l.items(a)
	if err != nil {
		return err
	}
	var filled []string
	for _, item := range items {
		if item.Type != corev1.LimitTypeContainer {
			continue
		}
		for _, list := range []struct {
			kind       string
			containers []corev1.Container
		}{{"container", pod.Spec.Containers}, {"init container", pod.Spec.InitContainers}} {
			for i := range list.containers {
				c := &list.containers[i]
				limits, requests := fill(&c.Resources.Limits, item.Default), fill(&c.Resources.Requests, item.DefaultRequest)
				for _, f := range []struct {
					what  string
					names []string
				}{{"request", requests}, {"limit", limits}} {
					if len(f.names) > 0 {
						filled = append(filled, fmt.Sprintf("%s %s for %s %s", strings.Join(f.names, ", "), f.what, list.kind, c.Name))
					}
				}
			}
		}
	}
	if len(filled) > 0 {
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[limitAnnotation] = "LimitRanger plugin set: " + strings.Join(filled, "; ")
	}
	return nil
}

// fill adds the defaults that are missing and returns their names, sorted.
func fill(to *corev1.ResourceList, defaults corev1.ResourceList) []string {
	var names []string
	for name, q := range defaults {
		if _, ok := (*to)[name]; ok {
			continue
		}
		if *to == nil {
			*to = corev1.ResourceList{}
		}
		(*to)[name] = q.DeepCopy()
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names
}

func (l *limitRanger) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	var check func(corev1.LimitRangeItem) []error
	switch obj := a.GetObject().(type) {
	case *corev1.Pod:
		// Of a pod's updates only a resize changes what it uses; a pod on its way out is let go.
		if a.GetSubresource() != "resize" && (a.GetSubresource() != "" || a.GetOperation() != admission.Create) || obj.DeletionTimestamp != nil {
			return nil
		}
		check = func(i corev1.LimitRangeItem) []error { return podOutside(i, obj) }
	case *corev1.PersistentVolumeClaim:
		if a.GetSubresource() != "" || obj.DeletionTimestamp != nil {
			return nil
		}
		check = func(i corev1.LimitRangeItem) []error { return claimOutside(i, obj) }
	default:
		return nil
	}
	items, err := l.items(a)
	if err != nil {
		return err
	}
	var errs []error
	for _, i := range items {
		errs = append(errs, check(i)...)
	}
	if len(errs) == 0 {
		return nil
	}
	var texts []string
	for _, e := range errs {
		texts = append(texts, e.Error())
	}
	return admission.NewForbidden(a, errors.New(strings.Join(texts, ", ")))
}

func podOutside(i corev1.LimitRangeItem, pod *corev1.Pod) []error {
	switch i.Type {
	case corev1.LimitTypeContainer:
		var errs []error
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for _, c := range list {
				errs = append(errs, outside(i, c.Resources.Requests, c.Resources.Limits, true)...)
			}
		}
		return errs
	case corev1.LimitTypePod:
		o := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
		return outside(i, resourcehelper.PodRequests(pod, o), resourcehelper.PodLimits(pod, o), true)
	}
	return nil
}

func claimOutside(i corev1.LimitRangeItem, c *corev1.PersistentVolumeClaim) []error {
	if i.Type != corev1.LimitTypePersistentVolumeClaim {
		return nil
	}
	return outside(i, c.Spec.Resources.Requests, nil, false)
}

// outside compares requests and limits with an item. hasLimits is false for what knows only requests (claims).
func outside(i corev1.LimitRangeItem, requests, limits corev1.ResourceList, hasLimits bool) []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, name := range sorted(i.Min) {
		floor, req, lim := i.Min[name], find(requests, name), find(limits, name)
		switch {
		case req == nil:
			bad("minimum %s usage per %s is %s. No request is specified", name, i.Type, floor.String())
		case req.Cmp(floor) < 0:
			bad("minimum %s usage per %s is %s, but request is %s", name, i.Type, floor.String(), req.String())
		case lim != nil && lim.Cmp(floor) < 0:
			bad("minimum %s usage per %s is %s, but limit is %s", name, i.Type, floor.String(), lim.String())
		}
	}
	for _, name := range sorted(i.Max) {
		ceiling, req, lim := i.Max[name], find(requests, name), find(limits, name)
		switch {
		case hasLimits && lim == nil:
			bad("maximum %s usage per %s is %s. No limit is specified", name, i.Type, ceiling.String())
		case lim != nil && lim.Cmp(ceiling) > 0:
			bad("maximum %s usage per %s is %s, but limit is %s", name, i.Type, ceiling.String(), lim.String())
		case req != nil && req.Cmp(ceiling) > 0:
			bad("maximum %s usage per %s is %s, but request is %s", name, i.Type, ceiling.String(), req.String())
		}
	}
	if !hasLimits {
		return errs
	}
	for _, name := range sorted(i.MaxLimitRequestRatio) {
		ratio, req, lim := i.MaxLimitRequestRatio[name], find(requests, name), find(limits, name)
		switch {
		case req == nil || req.IsZero():
			bad("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", name, i.Type, ratio.String())
		case lim == nil || lim.IsZero():
			bad("%s max limit to request ratio per %s is %s, but no limit is specified or limit is 0", name, i.Type, ratio.String())
		default:
			if have := lim.AsApproximateFloat64() / req.AsApproximateFloat64(); have > ratio.AsApproximateFloat64() {
				bad("%s max limit to request ratio per %s is %s, but provided ratio is %f", name, i.Type, ratio.String(), have)
			}
		}
	}
	return errs
}

func find(l corev1.ResourceList, name corev1.ResourceName) *resource.Quantity {
	if q, ok := l[name]; ok {
		return &q
	}
	return nil
}

func sorted(l corev1.ResourceList) []corev1.ResourceName {
	var names []corev1.ResourceName
	for n := range l {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
